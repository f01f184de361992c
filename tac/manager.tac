"""The role manager alone: twistd -ny tac/manager.tac (reads ./elkeid.toml if present)."""

from twisted.application.service import Application

from elkeid.tap import Options, makeService

options = Options()
options.parseOptions(["--role=manager"])
application = Application("elkeid")
makeService(options).setServiceParent(application)
