"""`python -m video_to_world clip.mp4`."""

from video_to_world.cli import main

if __name__ == "__main__":
    main()
