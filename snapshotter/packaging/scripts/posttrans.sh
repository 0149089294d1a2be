#!/bin/sh
# rpm alone, when the former version's files have gone.
/opt/apparate/dist/share/libexec/activate --restart
