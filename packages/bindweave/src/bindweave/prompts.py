"""The texts that BindWeave's steps send along: what is not wanted, and how a prompt is asked for."""

NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards, split screen, divided frame, frame split, multiple parts, "
    "separated"
)
"""What the text encoder reads for the other branch: the English form of Wan's list, and ways of cutting up a frame."""

MLLM_NEGATIVE_PROMPT = f"{NEGATIVE_PROMPT}, motionless, frozen, still image, no movement, stationary, unmoving"
"""The language model's negative prompt, which says more than the text encoder's, as in the original."""

INSTRUCTION = (
    "You write prompts for a model that makes short videos from a text and from pictures of the subjects. Below "
    "are the pictures, numbered, and then a user's idea. Look closely at each picture and rewrite the idea as one"
    " paragraph of English, 80 to 160 words, that describes a single unbroken shot.\n"
    "- Keep what the user wants: the same subjects, actions and place. Add nobody else.\n"
    "- Describe each subject as its picture shows it: face, hair, clothes, colours, material, shape. Invent "
    "nothing that contradicts a picture. Each subject appears once: no twins, no copies, no split screen, no "
    "picture in the picture.\n"
    "- Say where the subjects are, how near to each other, what they stand on or touch, and from where the light "
    "comes, so that they belong to the scene and do not look pasted into it.\n"
    "- Make the motion clear and strong, step by step; a move of the camera may follow it.\n"
    "- Do not mention the pictures or their numbers. Answer with the paragraph and nothing else."
)
"""What the language model is asked for; our own text."""
