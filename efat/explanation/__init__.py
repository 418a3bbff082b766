"""Why a chip classifies images otherwise than a fault-free one."""
