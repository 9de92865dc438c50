"""One clip over several processes, on diffusers' context parallelism: how it is split, and what goes between them."""
