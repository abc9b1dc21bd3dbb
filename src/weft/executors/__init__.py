"""Where the bodies of steps run when not on the loop or in our threads: other processes, Dask, Ray, any pool."""
