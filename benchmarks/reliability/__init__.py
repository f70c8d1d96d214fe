"""What users, full disks and hostile files do to this program: attacks that count what went wrong, one module each.

`interrupted`: kill -9, Ctrl-C, a full disk and a second run at random moments of every stage. `web`: the page and the viewer.
"""
