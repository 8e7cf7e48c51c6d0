"""What sites are told of the captured nodes: dtypes, constants, views, zeros of the batch, where values come from."""
