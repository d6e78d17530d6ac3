"""Every model of timm as a backbone of tvc."""
