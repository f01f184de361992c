"""The role sd alone: twistd -ny tac/sd.tac, with elkeid.toml of this folder if present."""

from twisted.application.service import Application

from elkeid.tap import Options, makeService

options = Options()
options.parseOptions(["--role=sd"])
application = Application("elkeid")
makeService(options).setServiceParent(application)
