"""Where journals live: the protocol, the codec, and the stores that come with Weft."""
