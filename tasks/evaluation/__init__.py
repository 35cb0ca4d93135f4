"""How good a model is: text, tasks, programs, and the rules of the smoke gate."""
