"""How a DiffLM is fitted and measured: data, the two training stages."""
