"""Image sets: packing into shards, and streaming of the shards in a pure, global sample order."""
