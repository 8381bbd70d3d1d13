from bridge_conformance import suite_for

globals().update(suite_for("tract"))
