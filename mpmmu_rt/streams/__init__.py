"""Coded images: what a stream says of itself, and the proof that the whole picture is coded in it.

    bytes ─ parse ─▶ Stream (size, bits, components, colour, as the stream itself states them)
    bytes ─ decode ─▶ samples, of a picture of which every part is there, by one named decoder per form

One module per form: `jpeg` (T.81, DCT), `jpeg_lossless` (T.81, annex H), `jpeg_ls` (T.87), `jpeg2000` (T.800), `rle`
(DICOM PS3.5 annex G) and `png`. `frames` cuts DICOM pixel data into the streams of its frames, and `dicom` holds a
stream against its DICOM header. Decoders fill what is missing from damaged streams with grey and say nothing; here
such a stream is refused. What can't be seen at all is damage that leaves another valid stream of the same length:
formats without checksums have it.
"""
