"""From a generator to the graph that is deployed."""
