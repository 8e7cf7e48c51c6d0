"""What the user takes home: plan, patched model, scaler config, result.json, the Pareto front."""
