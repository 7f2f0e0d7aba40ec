"""The settings of a run: what the user says, recipes, defaults, and the plan that follows from them."""
