"""Many scenes at once (`python -m batch`): every stage of every scene is a task with resources of its own.

Each module has one job: `scenes` reads the list, `plan` makes tasks of it, `schedule` decides what runs next and what happens to
what went wrong, `engine` and `engine_ray` run tasks here and on a cluster, `engine_simulated` only pretends to, `process` and `worker`
are the two ends of the process that does the work, `storage` is where scenes are kept, `records` what is left in them, `view` and
`page` show how it goes.

May import: anything.
Start: `schedule.Schedule`, `tasks.StageTask`, `cli.main`.
"""
