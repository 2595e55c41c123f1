"""Files and folders: writes are complete or absent, and reads are checked."""

from offsite.files.reading import FILE_NAME as FILE_NAME
from offsite.files.reading import MAX_FILES as MAX_FILES
from offsite.files.reading import MAX_JSON_BYTES as MAX_JSON_BYTES
from offsite.files.reading import POINTER as POINTER
from offsite.files.reading import folder_files as folder_files
from offsite.files.reading import is_pointer as is_pointer
from offsite.files.reading import is_sparse as is_sparse
from offsite.files.reading import open_regular as open_regular
from offsite.files.reading import parse_json as parse_json
from offsite.files.reading import read_json as read_json
from offsite.files.reading import reason as reason
from offsite.files.reading import sha256_file as sha256_file
from offsite.files.reading import shown as shown
from offsite.files.writing import check_free as check_free
from offsite.files.writing import disk_full as disk_full
from offsite.files.writing import exclusive as exclusive
from offsite.files.writing import locked as locked
from offsite.files.writing import new_file as new_file
from offsite.files.writing import new_folder as new_folder
from offsite.files.writing import sync as sync
from offsite.files.writing import write_file as write_file
from offsite.files.writing import writing as writing
