"""Students: pixels -> logits, from torchvision, timm or a user's own file. Never trains; knows no cache."""
