"""Checkpoints on the hubs: what a repository holds, fetched file by file, each one checked against its hash."""

from wan_core.hub.download import DownloadPlan, download_files, plan_download
from wan_core.hub.fetch import FetchedFile
from wan_core.hub.hubs import HubName, open_hub
from wan_core.hub.manifest import MANIFEST_NAME, verify_folder, write_manifest

__all__ = [
    "MANIFEST_NAME",
    "DownloadPlan",
    "FetchedFile",
    "HubName",
    "download_files",
    "open_hub",
    "plan_download",
    "verify_folder",
    "write_manifest",
]
