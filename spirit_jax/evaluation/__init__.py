"""Evaluation of a model by the paper's tasks, with their exact rules, prompts and seeds.

A task reads its items, turns them into requests to the model, logs the score of every item, and computes figures from
the log. `task` holds the protocol, `tasks/` one file for each task, `rules` the rules that make accuracies of scores,
`run` the loop over tasks, and `report` what a user reads. docs/evaluation.md is the guide.
"""
