"""Servers for a browser: who is let in, and the socket they listen on. Shared by the web page and the viewer.

May import: `utils.errors`.
Start: `access.access_for`, `access.Guard`, `listen.run`.
"""
