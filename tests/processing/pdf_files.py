"""Small PDF files, written by hand: what no program would save."""

from collections.abc import Sequence


def pdf_of(
    pages: int = 1,
    *,
    box: str = "0 0 200 100",
    contents: bytes = b"0 0 1 rg 0 0 200 50 re f",  # the lower half is blue
    resources: str = "",
    objects: Sequence[bytes] = (),
    count: int | None = None,
) -> bytes:
    """Return a document whose pages are all alike.

    Args:
        box: the MediaBox.
        resources: entries of the pages' resources; ``objects`` have the numbers from 5.
        count: of pages, as the file declares it.
    """
    first_page = 5 + len(objects)
    kids = " ".join(f"{first_page + number} 0 R" for number in range(pages))
    page = f"<</Type/Page/Parent 2 0 R/MediaBox[{box}]/Contents 3 0 R/Resources 4 0 R>>".encode()
    bodies = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {pages if count is None else count}/Kids[{kids}]>>".encode(),
        stream_of(contents),
        f"<<{resources}>>".encode(),
        *objects,
        *[page] * pages,
    ]
    data = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(bodies) + 1, start)
    return bytes(data)


def stream_of(content: bytes, entries: str = "") -> bytes:
    return b"<<%s/Length %d>>stream\n%s\nendstream" % (entries.encode(), len(content), content)


def pdf_with_picture(width: int, height: int, data: bytes, filters: str = "/FlateDecode") -> bytes:
    """Return a document with a grey picture that declares such a size."""
    entries = f"/Type/XObject/Subtype/Image/Width {width}/Height {height}/ColorSpace/DeviceGray/BitsPerComponent 8"
    picture = stream_of(data, f"{entries}/Filter{filters}")
    return pdf_of(contents=b"200 0 0 100 0 0 cm /P Do", resources="/XObject<</P 5 0 R>>", objects=[picture])
