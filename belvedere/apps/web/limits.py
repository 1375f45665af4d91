"""What the studio refuses as too much, in one place."""

from dataclasses import dataclass

from belvedere.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Caps of one server; what goes beyond them raises ``InputError`` in words that name the mend."""

    upload_bytes: int = 32 << 20
    upload_pixels: int = 24_000_000
    uploads_bytes: int = 2 << 30
    """Of all uploads that lie in the folder."""
    request_bytes: int = 4 << 20
    """Of any request that is no upload."""
    photographs: int = 32
    """Of a thing that is learned."""
    count: int = 24
    """Pictures of one request."""
    frames: int = 120
    """Of one film."""
    side: int = 1024
    """Pixels along the longer side of a picture or view that is made."""
    pixel_steps: int = 400_000_000
    """Pixels x steps x pictures of one request; about ten minutes of an embedded model on two cores."""
    learning_steps: int = 2000
    seconds: float = 600.0
    """Of one piece of work."""
    learning_seconds: float = 7200.0
    lessons: int = 20
    """Kept; the oldest go, but those that are learned and not kept."""
    waiting: int = 32
    """Requests in the queue."""
    results: int = 500
    """Kept on the shelf; the oldest go."""
    result_bytes: int = 2 << 30
    """All of them together."""

    def check_request(self, size: tuple[int, int], steps: int, count: int) -> None:
        """Raise ``InputError`` for too much work: ``count`` pictures of ``size`` (width, height) in ``steps`` each."""
        width, height = size
        if count > self.count:
            raise InputError(f"{count} pictures are too many at once: ask for {self.count} or fewer")
        if max(size) > self.side:
            raise InputError(f"{width} x {height} is too large: at most {self.side} pixels a side")
        if width * height * steps * count > self.pixel_steps:
            raise InputError(
                f"{count} pictures of {width} x {height} in {steps} steps are too much work for one request: "
                "ask for fewer, smaller, or fewer steps"
            )

    def check_film(self, size: tuple[int, int], frames: int) -> None:
        """Raise ``InputError`` for too many or too large frames of ``size`` (width, height)."""
        if frames > self.frames:
            raise InputError(f"{frames} frames are too many: ask for {self.frames} or fewer")
        if max(size) > self.side:
            raise InputError(f"{size[0]} x {size[1]} is too large: at most {self.side} pixels a side")

    def check_learning(self, photographs: int, steps: int) -> None:
        """Raise ``InputError`` for too many photographs or steps of a thing that is learned."""
        if photographs > self.photographs:
            raise InputError(f"{photographs} photographs are too many: give {self.photographs} or fewer")
        if steps > self.learning_steps:
            raise InputError(f"{steps} steps are too many: ask for {self.learning_steps} or fewer")
