"""lm-eval's tasks: their definitions, questions, and answers scored as lm-eval scores them."""
