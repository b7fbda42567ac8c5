"""What people do with vectors: search a folder, embed a corpus, serve clients. Each needs its extra."""
