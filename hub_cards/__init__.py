"""What is published beside the weights: model cards, metric modules and the demo Space."""
