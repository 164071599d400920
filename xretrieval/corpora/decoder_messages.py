"""What `decoder.py` and `decoder_process.py` say to each other.

A request is a line of JSON, `{"file", "memory", "seconds"}`, answered by an `OPENED` message or an error. Then comes `{"first", "count",
"rate"}`, answered by messages up to `DONE` or an error, or the request of the next file. A message is a header (kind, bytes that follow)
and these bytes.
"""

import struct

HEADER = struct.Struct("<cI")
READY = b"R"
OPENED, OPENED_FIELDS = b"O", struct.Struct("<qqq")  # sampling rate, channels, frames or -1 where only decoding tells
SAMPLES = b"S"  # float32 of the result
PROGRESS = b"P"  # a minute of sound was decoded of which no samples are sent
DONE, DONE_FIELDS = b"D", struct.Struct("<q")  # frames from the beginning of the file to where decoding ended
UNREADABLE = b"E"  # the reason, UTF-8
OUT_OF_MEMORY = b"M"
