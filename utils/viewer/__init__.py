"""The viewer of a world in the browser: its server, its page (`static/`) and what it reads of a scene.

Splats are drawn by the browser (`utils.viewer_bundle`). `pages` has the addresses, which the web page serves too; `world` reads files
without PyTorch, `prepare` makes them; `app` is the command, `source` finds the training that is meant.
May import: everything below `utils/`.
Start: `app.run`, `pages`, `world`.
"""
