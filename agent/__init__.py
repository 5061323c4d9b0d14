"""The demo: a stock-trading agent, its model, its tools, and the world that it is tried in."""
