"""What decides: pure data in, decisions out. No asyncio, threads, clock, disk or network."""
