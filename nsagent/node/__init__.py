"""What an agent reads: the parts that make a sample, put together for this node. No thread, no address, no end of its own."""
