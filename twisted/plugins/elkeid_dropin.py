"""Names the plugin's module by a string, so that listing plugins imports nothing of ours."""

from twisted.application.service import ServiceMaker

elkeid = ServiceMaker("Elkeid", "elkeid.tap", "open back end for host security agents", "elkeid")
