"""Local life of Parley: prepare the model, start and stop Redis, Ray and the application.

`deploy_file` reads and checks what is to run, `launch` starts it, `teardown` ends it, `status`
looks at it. Modules are imported one by one: Ray's schema alone takes a second.
"""

from __future__ import annotations

__all__: list[str] = []
