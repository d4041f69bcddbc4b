"""The dashboard: one HTML shell a page and native ES modules over the service's API.

No build step, nothing vendored.
"""
