"""Where a camera sees the tool and which colours it shows: how the pictures of a robot in order look."""
