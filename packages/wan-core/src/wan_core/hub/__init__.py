"""Checkpoints on the hubs: what a repository holds, fetched by the hubs' own clients, each file checked by its hash."""

from wan_core.hub.download import DownloadPlan, FetchedFile, download_files, plan_download
from wan_core.hub.hubs import HubName, cached_file, open_hub
from wan_core.hub.manifest import MANIFEST_NAME, verify_folder, write_manifest
from wan_core.hub.pretrained import folder_kind, load_beside, load_pretrained

__all__ = [
    "MANIFEST_NAME",
    "DownloadPlan",
    "FetchedFile",
    "HubName",
    "cached_file",
    "download_files",
    "folder_kind",
    "load_beside",
    "load_pretrained",
    "open_hub",
    "plan_download",
    "verify_folder",
    "write_manifest",
]
