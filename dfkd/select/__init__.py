"""Pool -> scores -> indices -> shards: what of an unlabeled pool this teacher can teach from."""
