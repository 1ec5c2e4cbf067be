"""Caption the pictures of shards: webdataset tars and parquet files in, one file of captions for each out."""
