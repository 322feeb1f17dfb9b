"""Systems that own their prints and their search: whole tracks in, then answers to query waves (`contract`)."""
