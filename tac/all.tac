"""Every role in one process: twistd -ny tac/all.tac (reads ./elkeid.toml if present)."""

from twisted.application.service import Application

from elkeid.tap import Options, makeService

options = Options()
options.parseOptions([])
application = Application("elkeid")
makeService(options).setServiceParent(application)
