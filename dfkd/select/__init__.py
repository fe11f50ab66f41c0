"""Selection of the images of an unlabeled pool from which a teacher can teach: pool -> scores -> indices -> shards."""
