"""The role ac alone: twistd -ny tac/ac.tac (reads ./elkeid.toml if present)."""

from twisted.application.service import Application

from elkeid.tap import Options, makeService

options = Options()
options.parseOptions(["--role=ac"])
application = Application("elkeid")
makeService(options).setServiceParent(application)
