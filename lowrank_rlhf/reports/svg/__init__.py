"""Charts as SVG: axes, drawing, and the figures behind them."""
