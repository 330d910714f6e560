"""A developer's own network, from a factory and a weights file to a bundle, without a training script.

`factory` and `weights` load the network, `settings` says what a work folder is for, `plan` how long it is trained,
`project` opens a folder again, `verbs` are the commands, `arguments` their options. The training, the export and the
checks are those of the recipes (`builder.recipes.common`).
"""
