"""The browser viewer of a trained world (viser).

`app` is the page and its events, `picture` renders what a visitor's camera sees, `pose` translates cameras, `source` finds checkpoints.
May import: everything below `utils/`.
Start: `app.run`.
"""
