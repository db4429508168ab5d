"""Images that lie together in larger files: in the shards of a tar archive, in the rows of parquet files."""
