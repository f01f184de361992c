"""The role sd alone: twistd -ny tac/sd.tac (reads ./elkeid.toml if present)."""

from twisted.application.service import Application

from elkeid.tap import Options, makeService

options = Options()
options.parseOptions(["--role=sd"])
application = Application("elkeid")
makeService(options).setServiceParent(application)
