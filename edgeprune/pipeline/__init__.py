"""The order of the stages: from a recipe to a judged bundle, and a model back from one."""
