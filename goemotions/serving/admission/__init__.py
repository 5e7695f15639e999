"""Who is let in, and in what order: the connections of a port, and the turns and shares of their addresses."""
